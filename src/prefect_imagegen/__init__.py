"""Turn a table of prompts and reference images into images and metadata in object storage."""
