"""`aapa plan`: what a recipe needs in memory and time at a parallel layout, told before any GPU is rented.

Bytes of weights, gradients and optimizer follow from the shapes and are exact; everything else is an estimate, and is
called one wherever it is shown.
"""
