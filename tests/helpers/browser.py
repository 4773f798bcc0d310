"""Debian's Chromium without a screen, for pages on this disk."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-quic",
)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
LIMIT_S = 60.0


@contextmanager
def chromium():
    options = Options()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        for flag in (*FLAGS, f"--user-data-dir={home}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield Page(driver)
        finally:
            driver.quit()


class Page:
    """What the browser shows."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, file, *, width=1280, dark=False):
        """The page once all its plots are drawn; the console's messages are `said` then."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(file.absolute().as_uri())
        deadline = time.monotonic() + LIMIT_S
        drawn = "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))"
        while not self.run(drawn):
            assert time.monotonic() < deadline, "the plots are not drawn"
            time.sleep(0.1)
        self.said = [entry["message"] for entry in self.driver.get_log("browser")]
        return self

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def marks(self):
        """Plot → how many points, lines, bars and images it has."""
        kinds = ".point, path.js-line, .hm image"
        script = "return Object.fromEntries([...document.querySelectorAll('.plot')].map("
        return self.run(f"{script}p => [p.id, p.querySelectorAll(arguments[0]).length]))", kinds)

    def column(self, section, place):
        script = "return [...document.querySelectorAll(arguments[0] + ' table.sortable tbody tr')]"
        return self.run(f"{script}.map(row => row.cells[arguments[1]].textContent.trim())", section, place)

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)
