"""Rewards by rule (being written)."""


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` that closes; of nested boxes the innermost."""
    stack, best, at = [], None, 0
    while at < len(text):
        if text[at] == "\\":
            if text.startswith("\\boxed{", at):
                stack.append(at + 7)
                at += 7
                continue
            at += 2
            continue
        if text[at] == "{":
            stack.append(None)
        elif text[at] == "}" and stack:
            start = stack.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, at)
        at += 1
    return None if best is None else text[best[0]:best[1]]
