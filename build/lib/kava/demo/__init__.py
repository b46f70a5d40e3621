"""The demo: a small trained teacher and base student that ship with the package, and the recipe for both."""
