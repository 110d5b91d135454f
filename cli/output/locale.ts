/**
 * Replacements for characters beyond ASCII, for terminals that do not have them: with LC_ALL=C, and
 * without any setting, as in cron.
 */

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

/** Text that this locale can show. */
export function inThisLocale(text: string): string {
  const { LC_ALL, LC_CTYPE, LANG } = process.env;
  const locale =
    [LC_ALL, LC_CTYPE, LANG].find((value) => value !== undefined && value !== '') ?? 'C';
  return /utf-?8/i.test(locale) ? text : text.replace(SIGNS, (sign) => ASCII[sign] ?? sign);
}
