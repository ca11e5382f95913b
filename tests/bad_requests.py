"""Bodies that are no request, and the field that the answer must name; for fakes and for the real server."""

RAW_BODIES = [
    (b"", "body"),
    (b"  \n", "body"),
    (b"{", "body"),
    (b"[1]", "body"),
    (b"nonsense", "body"),
    (b'{"prompt": "a"} x', "body"),
    (b'{"prompt": "\xff"}', "body"),
    (b'{"prompt": ' + b"[" * 100_000, "prompt"),
    (b"[" * 100_000, "body"),
    (b'{"a":' * 100_000, "a"),
    (b'{"prompt": "a", "temperature": NaN}', "temperature"),
    (b'{"prompt": "a", "temperature": -Infinity}', "temperature"),
    (b'{"prompt": "a", "top_p": 1e999}', "top_p"),
    (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", "max_tokens"),
    (b'{"prompt": "a", "max_tokens": 99999999999999999999}', "max_tokens"),
    (b'{"prompt": "a", "logit_bias": {"3": 1e999}}', "logit_bias.3"),
    (b'{"prompt": "a\\ud800b"}', "prompt"),
    (b'{"prompt": ["a", "\\udc00"]}', "prompt[1]"),
    (b'{"prompt": "a", "\\ud800": 1}', "?"),
    (b'{"prompt": "a", "prompt": "b"}', "prompt"),
]
