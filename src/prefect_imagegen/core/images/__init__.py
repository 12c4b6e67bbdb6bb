"""What the bytes of pictures say."""
