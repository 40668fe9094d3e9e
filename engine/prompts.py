"""The text that a model is given for a question.

"The paper" in this project is arXiv 2505.17988, read together with the code its authors published.
"""
TEMPLATES = ("chat", "base", "plain")
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def kk_suffix(words: dict) -> str:
    """What the paper adds to a Knights & Knaves puzzle, in the puzzle's own words for the roles."""
    return (" Your final answer should be in this format:"
            f" \\boxed{{XX is {words['a_knave']}, YY is {words['a_knight']}, ...}}")


def prompt_text(question: str, template: str) -> str:
    """The full prompt. `chat` and `base` are the paper's; `plain` adds nothing but a line's end."""
    if template == "chat":
        return (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
                "<|im_start|>assistant\n")
    if template == "base":
        return f"Question:\n{question}\nAnswer:\nLet's think step by step."
    if template == "plain":
        return question + "\n"
    raise ValueError(f"template = {template}: one of {', '.join(TEMPLATES)}")
