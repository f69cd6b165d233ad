"""Searching temperature and alpha, and whatever else a student has, with KerasTuner."""
