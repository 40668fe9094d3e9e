"""Solutions of lesson 5."""


def keep_correct(rollouts):
    kept, seen = [], set()
    for one in rollouts:
        if one["reward"] == 1 and one["id"] not in seen:
            seen.add(one["id"])
            kept.append(one)
    return kept


def token_advantages(teacher_logp, student_logp):
    return teacher_logp - student_logp
