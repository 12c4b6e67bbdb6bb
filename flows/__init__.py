"""The Prefect flows."""

from prefect_imagegen.flows.generate_images import agenerate_images, generate_images

__all__ = ["agenerate_images", "generate_images"]
