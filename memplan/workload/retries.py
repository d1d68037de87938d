"""What a client does when the engine fails or refuses its request: asks again, as a policy declares."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memplan.errors import InputError
from memplan.records import Request, RequestRecord
from memplan.units import parse_seconds

_NEVER_REASONS = ("wrong_api_key", "not_found")
"""And whatever exceeds something: asked again it would be refused again."""
_HINT = "--retry most=3,after=1s,factor=2"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Wait, ask again, wait longer."""

    most: int
    """Times that one request is asked again."""
    after_s: float
    """From the first failure to asking again, as a client has it: before dilation."""
    factor: float = 2.0
    """Of each wait over the one before."""
    dilation: float = 1.0

    @property
    def text(self) -> str:
        return f"at most {self.most}, after {self.after_s:g} s × {self.factor:g} each time"

    def again(self, request: Request, record: RequestRecord) -> tuple[Request, float] | None:
        """The same once more, and after how many seconds; None where it stays as it ended."""
        reason = record.reason or ""
        is_final = reason.startswith("exceeds_") or reason in _NEVER_REASONS
        if record.outcome not in ("failed", "rejected") or is_final or request.attempt > self.most:
            return None
        first = request.request_id if request.retry_of is None else request.retry_of
        attempt = request.attempt + 1
        asked = replace(
            request, request_id=f"{first}~{attempt}", retry_of=first, attempt=attempt, follows=None
        )
        return asked, self.after_s * self.factor ** (request.attempt - 1) * self.dilation


def parse_retries(text: str) -> RetryPolicy:
    """``most=3,after=1s`` and, if wanted, ``,factor=2``. Raises InputError."""
    found: dict[str, float] = {}
    for part in (one.strip() for one in text.split(",")):
        name, _, value = part.partition("=")
        try:
            match name:
                case "most":
                    found["most"] = int(value)
                case "after":
                    found["after_s"] = parse_seconds(value)
                case "factor":
                    found["factor"] = float(value)
                case _:
                    raise ValueError
        except (ValueError, InputError) as error:
            raise _bad(f"got {part!r}, expected most=TIMES, after=TIME or factor=NUMBER") from error
    missing = [name for name, key in (("most", "most"), ("after", "after_s")) if key not in found]
    if missing:
        raise _bad(f"{' and '.join(missing)} missing")
    policy = RetryPolicy(
        most=int(found["most"]), after_s=found["after_s"], factor=found.get("factor", 2.0)
    )
    if not (1 <= policy.most <= 100 and policy.after_s >= 0 and 1 <= policy.factor <= 100):
        raise _bad("expected most from 1 to 100, a time, and a factor from 1 to 100")
    return policy


def _bad(text: str) -> InputError:
    return InputError(f"--retry: {text}", hint=_HINT)
