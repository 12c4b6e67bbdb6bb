"""This project, without Prefect. ours.py MANIFEST BASE_URL FOLDER IN_FLIGHT [v1|v2]."""

import sys

from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.providers.settings import ProviderSettings

manifest, url, folder, in_flight, version = sys.argv[1:6]
prefect_imagegen.generate(
    manifest,
    f"{folder}/store",
    backend=ProviderSettings(base_url=url, api_key=SecretStr("k"), max_in_flight=int(in_flight)),
    api_version="v1" if version == "v1" else "v2",
    history_lag=5.0,
    values={"image_format": "jpeg"},
)
