"""Checkers for the exercises: each takes the learner's function and says what is not right yet."""
