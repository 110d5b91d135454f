/** Whether a run confirms the run before it: which system wins each row. */
import { short } from './plot.js';
import { advantage, find, spreadOf, type Measurement, type Results } from './results.js';

/** A row of one table: Pcow's advantage over one peer, in both runs. */
interface Comparison {
  name: string;
  first: number;
  second: number;
  /** In one of the runs there was no clear winner. */
  open: boolean;
}

/**
 * Some rounds were won and others lost, or the ranges of the two overlap: a few rounds may all fall
 * on one side by chance.
 */
function isOpen(mine: Measurement, peer: Measurement): boolean {
  const ratios = advantage(mine, peer);
  const [own, other] = [spreadOf(mine.values), spreadOf(peer.values)];
  return (ratios.low <= 1 && ratios.high >= 1) || (own.low <= other.high && other.low <= own.high);
}

/** Pcow compared with each peer in each row that both runs have. */
function comparisonsOf(name: string, first: Measurement[], second: Measurement[]): Comparison[] {
  return first
    .filter((mine) => mine.system === 'pcow')
    .flatMap((mine) =>
      first
        .filter((peer) => peer.system !== 'pcow' && find([peer], mine.table, mine.row, peer.system))
        .flatMap((peer) => {
          const mineAgain = find(second, mine.table, mine.row, mine.system);
          const peerAgain = find(second, peer.table, peer.row, peer.system);
          if (!mineAgain || !peerAgain) return [];
          return {
            name: `${name}, ${mine.table}: ${mine.row.join(', ')}, against ${peer.system}`,
            first: advantage(mine, peer).median,
            second: advantage(mineAgain, peerAgain).median,
            open: isOpen(mine, peer) || isOpen(mineAgain, peerAgain),
          };
        }),
    );
}

/** A sentence with the counts, and a list of the rows that have another winner. */
export function agreement(runs: Map<string, Results>, again: Map<string, Results>): string {
  const all = [...runs].flatMap(([name, { measurements }]) =>
    comparisonsOf(name, measurements, again.get(name)?.measurements ?? []),
  );
  if (all.length === 0) return '(measured once)';
  const differ = all.filter(({ first, second }) => first >= 1 !== second >= 1);
  const clear = differ.filter(({ open }) => !open);
  const [least, most] = [Math.min, Math.max].map((pick) =>
    short(pick(...all.map((each) => each.second / each.first))),
  );
  return [
    `Two runs of the ${[...runs.values()].every((each) => each.short) ? 'short' : 'full'} form are compared. Of ${all.length} comparisons of Pcow with a peer in a row, ${all.length - differ.length} have the same winner in both runs, and`,
    `${differ.length} have different winners. In ${differ.length - clear.length} of these, one of the runs has no clear winner (a tie: its rounds do not agree, or the values of the two`,
    `systems overlap, as they do in ${all.filter(({ open }) => open).length} of all comparisons); in ${clear.length}, both runs have a clear winner.`,
    `The second run's median ratio was ${least}× to ${most}× the first's.`,
    ...(differ.length > 0
      ? [
          '',
          '| row with another winner | first run | second run | |',
          '| --- | ---: | ---: | --- |',
        ]
      : []),
    ...differ.map(
      ({ name, first, second, open }) =>
        `| ${name} | ${short(first)}× | ${short(second)}× | ${open ? 'a tie' : ''} |`,
    ),
  ].join('\n');
}
