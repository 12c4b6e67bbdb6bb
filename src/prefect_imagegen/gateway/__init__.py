"""A self-hosted server of the Segmind API, with exchangeable engines that make the images."""
