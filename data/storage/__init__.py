"""Local and remote files, and a shared cache of them."""
