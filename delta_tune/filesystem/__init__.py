"""Atomic files, files at s3:// and gs://, and the cache of measurements."""
