"""The entry of the pool: GPU workers, which cost nothing."""

from dataclasses import replace

from pydantic import SecretStr

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.policy.abilities import FREE
from prefect_imagegen.core.request.models import DEFAULT_MODEL
from prefect_imagegen.core.request.profiles import DEFAULT_PROFILE, PROFILES, licence_of
from prefect_imagegen.providers.entry import Environment, ProviderEntry
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.pool.dialects import DIALECTS, worker_of
from prefect_imagegen.providers.pool.provider import Pool, PoolPolicy
from prefect_imagegen.providers.settings import ProviderSettings


def _resolve(settings: ProviderSettings, environment: Environment) -> ProviderSettings:
    """Resolve the settings of a pool. Raises RefusedError: `no_endpoints`, `bad_endpoint`."""
    if not settings.endpoints:
        raise RefusedError(
            "no_endpoints", "The pool has no workers.", remedy="Name each with --endpoint DIALECT+http://HOST:PORT."
        )
    urls = [worker_of(endpoint).url for endpoint in settings.endpoints]
    if len(set(urls)) < len(urls):
        raise RefusedError("bad_endpoint", "An endpoint is named twice.", remedy="Name each once.")
    key = environment.get("PREFECT_IMAGEGEN_POOL_API_KEY")
    return replace(
        settings,
        profile=settings.profile or DEFAULT_PROFILE,
        weights_license=settings.weights_license or licence_of(settings.weights or settings.model or DEFAULT_MODEL),
        api_key=settings.api_key or (SecretStr(key) if key else None),
    )


def open_pool(settings: ProviderSettings, deadline: float) -> Pool:
    """The workers of resolved settings as one provider. `deadline` is in seconds."""
    workers = [worker_of(endpoint) for endpoint in settings.endpoints]
    dialects = [DIALECTS[worker.dialect](worker.url, worker.key or settings.api_key, deadline) for worker in workers]
    policy = PoolPolicy(deadline, settings.endpoint_limit, PROFILES[settings.profile or DEFAULT_PROFILE])
    return Pool(dialects, policy, SystemClock(), limits=[worker.limit for worker in workers])


POOL = ProviderEntry(
    name="pool",
    abilities=FREE,
    open=open_pool,
    resolver=_resolve,
    needs_key=False,
    key_remedy="Set PREFECT_IMAGEGEN_POOL_API_KEY, or write #key=env:NAME behind a worker's own --endpoint.",
    own_options=frozenset(
        {"endpoints", "endpoint_limit", "profile", "strict_parameters", "weights", "weights_license"}
    ),
    may_be_gateway=True,
)
