"""What is built on the toolkit."""
