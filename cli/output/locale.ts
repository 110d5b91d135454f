/** Signs beyond ASCII, for terminals that have no others: under LC_ALL=C, and where nothing is set, as in cron. */

const ASCII: Readonly<Record<string, string>> = {
  '“': '"',
  '”': '"',
  '‘': "'",
  '’': "'",
  '…': '...',
  '→': '->',
  '–': '-',
  '×': 'x',
  µ: 'u',
  '├': '|',
  '└': '`',
  '│': '|',
  '─': '-',
  '█': '#',
  '░': '-',
};
const SIGNS = new RegExp(`[${Object.keys(ASCII).join('')}]`, 'gu');

/** Text for people as this locale can show it. */
export function inThisLocale(text: string): string {
  const { LC_ALL, LC_CTYPE, LANG } = process.env;
  const locale = [LC_ALL, LC_CTYPE, LANG].find((value) => value !== undefined && value !== '') ?? 'C';
  return /utf-?8/i.test(locale) ? text : text.replace(SIGNS, (sign) => ASCII[sign] ?? sign);
}
