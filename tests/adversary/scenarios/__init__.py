"""What is played in the world."""
