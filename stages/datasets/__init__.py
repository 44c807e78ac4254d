"""What `prepare` does to data: reading any public format, checking every row, counting whatever is dropped."""
