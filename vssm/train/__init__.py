"""Training on Lightning: the module, its optimizer and schedule, callbacks. No model names inside.

Importing this package is light.
"""
