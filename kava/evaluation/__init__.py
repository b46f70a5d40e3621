"""Answers of one model to the test questions, and their marks."""
