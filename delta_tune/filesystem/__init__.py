"""Files that appear whole or not at all, here and at s3:// or gs://, and the cache of measurements."""
