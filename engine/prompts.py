"""The text that a model is given for a question.

"The paper" in this project is arXiv 2505.17988, read together with the code its authors published.
"""
TEMPLATES = ("chat", "base", "plain")
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
# What stands before and behind a question. `chat` and `base` are the paper's.
CHAT = (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>", "<|im_end|>\n<|im_start|>assistant\n")
BASE = ("Question:\n", "\nAnswer:\nLet's think step by step.")


def kk_suffix(words: dict) -> str:
    """What the paper adds to a Knights & Knaves puzzle, in the puzzle's own words for the roles."""
    return (" Your final answer should be in this format:"
            f" \\boxed{{XX is {words['a_knave']}, YY is {words['a_knight']}, ...}}")


def prompt_text(question: str, template: str) -> str:
    """The full prompt. `plain` adds nothing but a line's end."""
    if template == "chat":
        return f"{CHAT[0]}user\n{question}{CHAT[1]}"
    if template == "base":
        return f"{BASE[0]}{question}{BASE[1]}"
    if template == "plain":
        return question + "\n"
    raise ValueError(f"template = {template}: one of {', '.join(TEMPLATES)}")


def pieces(prompt: str) -> list[tuple[str, bool]]:
    """The prompt in pieces of text. True: special tokens in it are meant as such. False: it is a
    part of somebody's question, where they are plain text.

    It is cut at special tokens, so the tokens of the pieces are the tokens of the whole. A prompt
    that no template made is its author's throughout.
    """
    begin, end = CHAT
    if not prompt.endswith(end):
        end = end.rstrip("\n")          # In K&K examples of SFT the answer begins with the newline.
    if prompt.startswith(begin + "user\n") and prompt.endswith(end):
        cut = len(prompt) - len(end)
        return [(begin, True), (prompt[len(begin):cut], False), (end, True)]
    return [(prompt, not (prompt.startswith(BASE[0]) and prompt.endswith(BASE[1])))]
