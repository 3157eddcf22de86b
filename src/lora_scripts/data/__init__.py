"""Data without networks: records, readers, buckets, captions, the cache and the loader."""
