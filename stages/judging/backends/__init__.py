"""What can answer a judge's questions; each is a `Chat`."""
