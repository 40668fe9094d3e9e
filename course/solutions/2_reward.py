"""Solutions of lesson 2."""


def box(response):
    begin = response.rfind("\\boxed{")
    if begin < 0:
        return ""
    begin += len("\\boxed{")
    end = response.find("}", begin)
    return response[begin:end] if end >= 0 else ""


def correct(claimed, gold):
    return sorted(claimed.split(", ")) == sorted(gold.split(", "))


def fool():
    roles = ("knight", "knave")
    return "\n".join(f"A is a {a}, B is a {b}" for a in roles for b in roles)
