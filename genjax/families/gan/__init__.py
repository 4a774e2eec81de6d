"""Generative adversarial networks.

`gan.py` trains any generator and discriminator in turns; `objectives.py` has their losses, `augmentation.py` changes
the discriminator's input; `dcgan.py`, `sngan.py`, `style_gan2.py` and `style_gan3.py` are networks, and
`style_gan.py` trains the last two.
"""
