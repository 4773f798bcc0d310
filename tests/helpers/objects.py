"""What lies on the tests' S3 server."""

from __future__ import annotations

from pyarrow import fs


def at(address):
    """File → content, of what lies there."""
    filesystem, root = fs.FileSystem.from_uri(address)
    infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    paths = [info.path for info in infos if info.is_file]
    return {path.removeprefix(f"{root}/"): filesystem.open_input_stream(path).read() for path in paths}
