"""Other programs' formats: a model trained here goes out, weights from elsewhere come in."""
