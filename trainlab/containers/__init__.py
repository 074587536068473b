"""For those who write the loop themselves: containers of models and optimizers that move, wrap and save together."""
