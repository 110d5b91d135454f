/**
 * The scripts for the shells. They contain nothing about the commands: candidates.ts answers each
 * request.
 */
import type { Completion } from './candidates.js';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/**
 * The output for the scripts: first “:files” and the like, then a line for each candidate, with its
 * description after a tab.
 */
export function answerLines({ candidates, shells }: Completion): string[] {
  const lines = candidates
    // A newline in a name would split the line.
    .filter(({ value }) => !/[\n\t]/.test(value))
    .map(({ value, description }) => (description === '' ? value : `${value}\t${description}`));
  return shells === null ? lines : [`:${shells}`, ...lines];
}

export function completionScript(program: string, shell: Shell): string {
  return `${HEADS[shell]}\n${SCRIPTS[shell].replaceAll('PROGRAM', program)}`;
}

const HEADS: Record<Shell, string> = {
  bash: '# Completion for bash: source this, or put it into bash-completion’s directory.',
  // compinit reads the first line.
  zsh: '#compdef pcow',
  fish: '# Completion for fish: put this into ~/.config/fish/completions.',
};

const SCRIPTS: Record<Shell, string> = {
  // bash also breaks words before “@” and after “=”. So the words are made from the line, and only
  // the part of a candidate after the last break is returned.
  bash: String.raw`_PROGRAM() {
  local line=${'$'}{COMP_LINE:0:COMP_POINT} words lines candidate current broken=''
  read -ra words <<< "$line"
  [[ $line == *[[:space:]] ]] && words+=('')
  current=${'$'}{words[-1]}
  [[ $COMP_WORDBREAKS == *@* && $current == *@* ]] && broken=${'$'}{current%@*}
  [[ $COMP_WORDBREAKS == *=* && $current == *=* && $current != *=*@* ]] && broken=${'$'}{current%=*}=
  mapfile -t lines < <("${'$'}{words[0]}" completion words -- "${'$'}{words[@]:1}" 2> /dev/null)
  COMPREPLY=()
  for candidate in "${'$'}{lines[@]}"; do
    case $candidate in
      :files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
      :directories) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
      :commands) mapfile -t COMPREPLY < <(compgen -c -- "$current") ;;
      *)
        candidate=${'$'}{candidate%%$'\t'*}
        [[ $candidate == *[/@] ]] && compopt -o nospace
        COMPREPLY+=("$(printf %q "${'$'}{candidate#"$broken"}")")
        ;;
    esac
  done
}
complete -F _PROGRAM PROGRAM
`,
  zsh: String.raw`_PROGRAM() {
  local line value
  local -a values shown open
  for line in "${'$'}{(@f)$(PROGRAM completion words -- "${'$'}{(@Q)words[2,CURRENT]}" 2> /dev/null)}"; do
    value=${'$'}{line%%$'\t'*}
    case $line in
      '') ;;
      :files) _files ;;
      :directories) _files -/ ;;
      :commands) _command_names -e ;;
      *)
        if [[ $value == *[/@] ]]; then
          open+=("$value")
        else
          values+=("$value")
          if [[ $line == *$'\t'* ]]; then shown+=("$value -- ${'$'}{line#*$'\t'}"); else shown+=("$value"); fi
        fi
        ;;
    esac
  done
  (( $#values )) && compadd -l -d shown -a values
  (( $#open )) && compadd -S '' -a open
}
if [ "${'$'}{funcstack[1]}" = _PROGRAM ]; then _PROGRAM "$@"; else compdef _PROGRAM PROGRAM; fi
`,
  fish: String.raw`function __PROGRAM_complete
  set -l words (commandline -opc)
  set -e words[1]
  for line in (PROGRAM completion words -- $words (commandline -ct) 2> /dev/null)
    switch $line
      case ':files'
        __fish_complete_path (commandline -ct)
      case ':directories'
        __fish_complete_directories (commandline -ct) ''
      case ':commands'
        complete -C (commandline -ct)
      case '*'
        echo $line
    end
  end
end
complete -c PROGRAM -f -a '(__PROGRAM_complete)'
`,
};
