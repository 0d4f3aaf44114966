"""What every room needs: errors, files, paths, progress, provenance, torchvision and timm."""
