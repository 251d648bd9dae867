"""The mathematics of evaluation: of features, images, latent vectors and scores, without models or files."""
