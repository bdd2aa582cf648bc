"""How each asset of `fetch_assets.py` is made out of what a package or an archive carries."""
