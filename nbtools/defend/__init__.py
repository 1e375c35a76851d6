"""python -m nbtools defend: someone's own checkpoint and clean images in; a repaired checkpoint, a page, a card out."""
