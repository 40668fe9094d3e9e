"""The text that a model is given for a question.

"The paper" in this project is arXiv 2505.17988, read together with the code its authors published.
"""
TEMPLATES = ("chat", "direct", "base", "plain")
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
# What stands before and behind a question. `chat` and `base` are the paper's. `chat` is the template
# of Qwen2.5, Qwen3 and SmolLM2; `direct` is that of Qwen3 with thinking switched off.
CHAT = (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>", "<|im_end|>\n<|im_start|>assistant\n")
NO_THINKING = "<think>\n\n</think>\n\n"
# What these tags of CHAT are for Llama 3. (The dates that its own template adds are left out.)
LLAMA3 = (f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>",
          "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
# Tokens that end an answer, in one family or another.
END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>")
BASE = ("Question:\n", "\nAnswer:\nLet's think step by step.")


def kk_suffix(words: dict) -> str:
    """What the paper adds to a Knights & Knaves puzzle, in the puzzle's own words for the roles."""
    return (" Your final answer should be in this format:"
            f" \\boxed{{XX is {words['a_knave']}, YY is {words['a_knight']}, ...}}")


def prompt_text(question: str, template: str) -> str:
    """The full prompt. `plain` adds nothing but a line's end."""
    if template in ("chat", "direct"):
        return f"{CHAT[0]}user\n{question}{CHAT[1]}{NO_THINKING * (template == 'direct')}"
    if template == "base":
        return f"{BASE[0]}{question}{BASE[1]}"
    if template == "plain":
        return question + "\n"
    raise ValueError(f"template = {template}: one of {', '.join(TEMPLATES)}")


def pieces(prompt: str, family: str = "chatml") -> list[tuple[str, bool]]:
    """The prompt in pieces of text. True: special tokens in it are meant as such. False: it is a
    part of somebody's question, where they are plain text.

    It is cut at special tokens, so the tokens of the pieces are the tokens of the whole. A prompt
    that no template made is its author's throughout. Files have `chat` prompts in one form; a
    family of models with other tags gets its own here.
    """
    begin, end = CHAT
    ends = (end, end + NO_THINKING, end.rstrip("\n"))       # In K&K examples of SFT the answer
    end = next((end for end in ends if prompt.endswith(end)), None)         # begins with the newline.
    if end and prompt.startswith(begin + "user\n"):
        question = prompt[len(begin):len(prompt) - len(end)]
        if family == "llama3":
            question = question.removeprefix("user\n").strip()     # as its own template does
            return [(LLAMA3[0], True), ("\n\n" + question, False),
                    (LLAMA3[1], True)]
        return [(begin, True), (question, False), (end, True)]
    return [(prompt, not (prompt.startswith(BASE[0]) and prompt.endswith(BASE[1])))]
