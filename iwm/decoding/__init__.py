"""Training of decoders: a window into the latents of a frozen teacher."""
