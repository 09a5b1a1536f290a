class Said:
    """A message of a gateway, as far as a picker reads it.

    Attributes:
        kind: the number of its field in ``ProcessingRequest``; 0 where it has none.
        ends: the stream ends with it.
        body: of one that carries a part of a body.
        headers: values by name, of one that carries headers; ``header_count`` in all, of ``header_bytes``.
        metadata: ``metadata_context`` as it stands on the wire, ``None`` where it is not said.
        has_modes: ``request_mode`` and ``response_mode`` are said, numbers of ``BodySendMode``.
    """

    @property
    def kind(self) -> int: ...
    @property
    def ends(self) -> bool: ...
    @property
    def body(self) -> bytes: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def header_count(self) -> int: ...
    @property
    def header_bytes(self) -> int: ...
    @property
    def metadata(self) -> bytes | None: ...
    @property
    def has_modes(self) -> bool: ...
    @property
    def request_mode(self) -> int: ...
    @property
    def response_mode(self) -> int: ...

def read(message: bytes, names: dict[bytes, str], is_checked: bool) -> Said | None:
    """A ``ProcessingRequest`` that says what gateways say, and each thing once; ``None`` of any other.

    Headers are those whose lower-case name is among ``names``; of one that comes again the first counts, and bytes that
    are no UTF-8 are replaced. Of one that ``is_checked``, as protobuf's own writer made it, trailers and names that are
    no ASCII are read as well.
    """
