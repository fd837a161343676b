"""A run's folder: its names, what resumes it, several seeds as one, callbacks."""
