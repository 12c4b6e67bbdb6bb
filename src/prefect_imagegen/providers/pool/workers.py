"""The health of a pool's workers: which ones are up, which are left out and why, and when they return."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence

from prefect_imagegen.core.errors import ProviderError, RefusedError
from prefect_imagegen.core.policy.outages import Outage, since_text
from prefect_imagegen.core.request.profiles import Profile
from prefect_imagegen.ports import Clock
from prefect_imagegen.providers.pool.endpoint import IN_A_ROW, Endpoint, Judgement
from prefect_imagegen.store.store_kind import kind_of_engine

_logger = logging.getLogger(__name__)
_MIN_PROBE_S, _MAX_PROBE_S = 0.5, 30.0
_OPENING_LOOK_S = 5.0
_MEANWHILE = "its calls go to the others, if there are some"


class Workers:
    """Watches the endpoints of a pool. `on_health` is called whenever one has reported its health."""

    def __init__(
        self, endpoints: Sequence[Endpoint], clock: Clock, profile: Profile | None, on_health: Callable[[], None]
    ) -> None:
        self._endpoints = endpoints
        self._clock = clock
        self._profile = profile
        self._on_health = on_health
        self.changed = asyncio.Event()
        """Set whenever a worker may have become free, healthy or left out."""
        self.left_out: dict[str, str] = {}
        """Why workers were left out, by base URL."""
        self._probes: set[asyncio.Task[None]] = set()
        self._outages: dict[str, Outage] = defaultdict(Outage)

    async def open(self, deadline: float) -> None:
        """Wait for the first healthy worker; the others are probed meanwhile.

        Raises ProviderError (`no_worker`) after the deadline, RefusedError for workers that cannot serve this run.
        """
        await self.look_at_all()
        self._refuse_useless()
        self._refuse_mixture()
        for endpoint in self._endpoints:
            if endpoint.barred:
                self._log_left_out(endpoint, "for the rest of this run")
            elif not endpoint.up:
                self._log_left_out(endpoint, "until it is healthy")
                self._watch(endpoint, _MIN_PROBE_S)
        waited = 0.0
        while not any(endpoint.up for endpoint in self._endpoints):
            self._refuse_useless()
            why = self._reasons
            if waited >= deadline:
                raise ProviderError("no_worker", f"no worker was ready within {waited:.0f} s: {why}")
            if not waited:
                _logger.warning("Waiting for the first healthy worker, for up to %.0f s: %s", deadline, why)
            patience = min(_OPENING_LOOK_S, deadline - waited)
            await self.wait(patience)
            waited += patience
        self._refuse_mixture()

    async def look_at_all(self) -> None:
        """Read the health of every worker."""
        await asyncio.gather(*(self._look(endpoint) for endpoint in self._endpoints))

    async def aclose(self) -> None:
        """Stop probing."""
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)

    async def wait(self, seconds: float | None) -> None:
        """Wait until something has changed, or for so many seconds (None: without a limit)."""
        self.changed.clear()
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self.changed.wait())]
        if seconds is not None:
            waits.append(asyncio.ensure_future(self._sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in waits:
                waiting.cancel()

    async def _sleep(self, seconds: float) -> object:
        await self._clock.sleep(seconds)
        return None

    def note_refused_row(self, endpoint: Endpoint, error: ProviderError) -> None:
        """Count a row that this worker has refused and another one took; after several it is left out."""
        endpoint.failures += 1
        if endpoint.failures >= IN_A_ROW:
            self.eject(endpoint, Judgement(error, "rest", f"it refuses what others take: {error.message}"))

    def eject(self, endpoint: Endpoint, judgement: Judgement) -> None:
        """Leave a worker out, as a judgement says, and log it."""
        if not judgement.out or not endpoint.up:
            endpoint.barred = endpoint.barred or judgement.out == "barred"
            return
        endpoint.up, endpoint.why_down = False, judgement.why
        endpoint.refused = endpoint.refused or judgement.is_refusal
        endpoint.barred = judgement.out == "barred"
        until = "for the rest of this run" if endpoint.barred else "until it is healthy again"
        self._log_left_out(endpoint, until)
        if not endpoint.barred:
            self._watch(endpoint, endpoint.next_rest() if judgement.out == "rest" else _MIN_PROBE_S)
        self.changed.set()

    def _log_left_out(self, endpoint: Endpoint, until: str) -> None:
        """Log why a worker is left out: once until it is back, and once more if it never comes back."""
        lasted = self._outages[endpoint.name].failed(self._clock.monotonic())
        if endpoint.barred:
            _logger.warning("Worker %s is left out %s: %s", endpoint.name, until, endpoint.why_down)
        elif lasted is not None:
            since, why = since_text(lasted, self._clock.now()), endpoint.why_down
            _logger.warning("Worker %s is left out %s: %s (%s; %s)", endpoint.name, until, why, since, _MEANWHILE)
        self.left_out[endpoint.name] = endpoint.why_down

    def _log_back(self, endpoint: Endpoint) -> None:
        """Log that a worker is back, if it was logged as left out."""
        seconds = self._outages[endpoint.name].worked(self._clock.monotonic())
        if seconds is not None:
            _logger.warning("Worker %s is ready, after %.0f s. Nothing was lost.", endpoint.name, seconds)

    def _watch(self, endpoint: Endpoint, pause: float) -> None:
        task = asyncio.get_running_loop().create_task(self._probe(endpoint, pause))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _probe(self, endpoint: Endpoint, pause: float) -> None:
        """Read a worker's health, ever less often, until it is back or barred."""
        while not endpoint.up and not endpoint.barred:
            await self._clock.sleep(pause)
            pause = min(_MAX_PROBE_S, 2 * pause)
            endpoint.on_trial = endpoint.rests > 0
            await self._look(endpoint)
            if not endpoint.up and not endpoint.barred:
                self._log_left_out(endpoint, "until it is healthy again")
        if endpoint.barred:
            endpoint.up = False
            self._log_left_out(endpoint, "for the rest of this run")
        else:
            self._log_back(endpoint)
        self.changed.set()

    @property
    def _reasons(self) -> str:
        return "; ".join(f"{endpoint.name}: {endpoint.why_down}" for endpoint in self._endpoints)

    def _refuse_useless(self) -> None:
        """Raise RefusedError where every worker runs another profile, or rejects our key."""
        misfits = [endpoint for endpoint in self._endpoints if endpoint.misfit(self._profile)]
        if len(misfits) == len(self._endpoints):
            raise RefusedError(
                "profile_mismatch",
                f"{misfits[0].name} {misfits[0].why_down}.",
                remedy="Use its --profile, or other workers.",
            )
        if all(endpoint.barred or endpoint in misfits for endpoint in self._endpoints):
            raise RefusedError(
                "wrong_key",
                f"No worker takes the key: {self._reasons}.",
                remedy="Set PREFECT_IMAGEGEN_POOL_API_KEY, or write #key=env:NAME behind a worker's own --endpoint.",
            )

    async def _look(self, endpoint: Endpoint) -> None:
        await endpoint.look(self._profile)
        self._on_health()

    def _refuse_mixture(self) -> None:
        """Raise RefusedError where some workers make placeholders and others real images: they never share a store."""
        kinds = {kind_of_engine(endpoint.health.engine) for endpoint in self._endpoints if endpoint.up}
        names = ", ".join(endpoint.name for endpoint in self._endpoints)
        if len(kinds) > 1:
            raise RefusedError("mixed_pool", f"Some of {names} are sandboxes, some are not.", remedy="Use one kind.")
