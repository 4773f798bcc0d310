"""What a study leaves in its folder: tables, journal, `study.json`, and the statistics over them."""
