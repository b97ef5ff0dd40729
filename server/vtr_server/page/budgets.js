// The stops of the budget slider, from what the server offers.

/**
 * Stops in ascending order: {budget, tier, name, ask}; `tier` may be null and `name` "", `ask` is
 * the vtr object of a request. Of several offers at one budget a tier comes first, then a schedule
 * that answers to its budget, then one that has a name only, then a bound of what may be asked for.
 */
export function stopsOf(offer) {
  const { minimum = 0, maximum = 1 } = offer.budget ?? {};
  const found = new Map();
  const add = (budget, name, ask) => {
    const key = budget.toFixed(3);
    if (budget >= minimum - 1e-9 && budget <= maximum + 1e-9 && !found.has(key)) {
      found.set(key, { budget, tier: ask.tier ?? null, name, ask });
    }
  };
  for (const [tier, budget] of Object.entries(offer.tiers ?? {})) add(budget, tier, { tier });
  const stored = offer.data ?? [];
  const stated = stored.filter((schedule) => typeof schedule.budget === "number");
  for (const { budget, name } of stated) add(budget, "", name === "full" ? { budget: 1 } : { budget });
  for (const { mean_keep, name, budget, adaptive_cuts } of stored) {
    if (budget === null) add(mean_keep, adaptive_cuts ? `${name}, at most` : name, { schedule: name });
  }
  if (maximum < 1) add(maximum, "", { budget: maximum });
  if (minimum > 0) add(minimum, "", { budget: minimum });
  return [...found.values()].sort((a, b) => a.budget - b.budget);
}

export function nameOf({ budget, name }) {
  const number = String(Number(budget.toFixed(4)));
  return name ? `${number} · ${name}` : number;
}
