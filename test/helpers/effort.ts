/**
 * How much of what can be done any number of times: in short (npm test), at length (PCOW_LONG=1,
 * npm run test:long), or as often as the environment says.
 */
export const AT_LENGTH = process.env.PCOW_LONG !== undefined;

/** `variable`: of the environment. */
export function effort(inShort: number, atLength: number, variable?: string): number {
  const given = variable === undefined ? undefined : process.env[variable];
  return given === undefined ? (AT_LENGTH ? atLength : inShort) : Number(given);
}
