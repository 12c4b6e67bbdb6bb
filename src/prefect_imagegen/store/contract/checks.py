"""All checks of the store contract, and what it means for runs where a store fails one."""

from prefect_imagegen.store.contract import content, listing, writing
from prefect_imagegen.store.contract.bench import ContractCheck

_CONDITIONAL = (
    "Use a store with conditional puts (S3, R2, MinIO, GCS, Azure), or a local path; see docs/guides/stores.md."
)
_CONSISTENT = "Use a store that is consistent after a write, without a cache or a replica in between."
_PAID_TWICE = "Nothing keeps two runs from paying for the same image: no run may use this store."
_UNSEEN = (
    "Claims are read by name, so nothing is paid twice; what other runs have just done may be looked up once more."
)
CHECKS = (
    ContractCheck("create-only", writing.create_only, _PAID_TWICE, _CONDITIONAL),
    ContractCheck("racing-creators", writing.racing_creators, _PAID_TWICE, _CONDITIONAL),
    ContractCheck("create-after-put", writing.create_after_put, _PAID_TWICE, _CONDITIONAL),
    ContractCheck(
        "read-after-write",
        writing.read_after_write,
        "A run reads claims and images that are not what it wrote.",
        _CONSISTENT,
    ),
    ContractCheck("list-after-write", listing.list_after_write, _UNSEEN, _CONSISTENT),
    ContractCheck(
        "list-after-delete",
        listing.list_after_delete,
        "Removed events are listed and looked for in vain; nothing is lost by it.",
        _CONSISTENT,
    ),
    ContractCheck(
        "odd-names",
        listing.odd_names,
        "Runs use none of these names; what you publish under such names would not be found.",
        "Keep to letters, digits, '-', '_' and '.' in the names of what you publish, and in --store.",
    ),
    ContractCheck(
        "case",
        listing.case,
        "Runs use no names that differ in nothing else; what you publish under such names would be overwritten.",
        "Do not tell names apart by upper and lower case.",
    ),
    ContractCheck(
        "long-listing",
        listing.long_listing,
        "A run would not see all that was paid before, and `verify` would miss images.",
        "Use a store whose listings go on after the first page.",
    ),
    ContractCheck(
        "siblings",
        listing.siblings,
        "A run would take files of its neighbours for its own.",
        "Use a store that lists by prefix as S3 does.",
    ),
    ContractCheck(
        "large-object",
        content.large_object,
        "Large images would be lost after they were paid.",
        "Raise the size limit of the store, or of the proxy before it.",
    ),
    ContractCheck(
        "empty-object",
        content.empty_object,
        "Empty files of datasets cannot be kept; runs write none.",
        "Use a store that takes empty objects, if you publish any.",
    ),
    ContractCheck(
        "content-type",
        content.content_type,
        "Browsers may download images instead of showing them; runs do not go by it.",
        "Look at the settings of the store, or of the proxy before it.",
    ),
    ContractCheck(
        "delete",
        writing.delete,
        "Events that were absorbed and claims that are over would stay for ever; nothing is paid twice.",
        "Allow the credentials to remove objects, and look for a retention rule on the bucket.",
    ),
    ContractCheck(
        "absent",
        writing.absent,
        "A run cannot tell what is new from what is out of reach.",
        "Allow the credentials to list the bucket (s3:ListBucket): without it S3 says 403 of what is not there.",
    ),
    ContractCheck(
        "clock",
        content.clock,
        "Signatures are refused from 15 minutes on, and request histories are searched by time.",
        "Set both clocks right (NTP).",
    ),
)
"""All checks, in the order in which they are run."""
