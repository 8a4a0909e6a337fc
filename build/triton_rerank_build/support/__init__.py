"""Small tools that every part uses: files, progress, optional dependencies."""
