"""S3 services that are nearly S3: a proxy in front of the real server, with one fault at a time."""
