"""What `prepare` does with data: it reads any public format, checks every row, and counts whatever it drops."""
