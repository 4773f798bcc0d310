"""`python -m delta_tune inspect`: what is in a data set, and what is wrong with it."""
