# Prints what zsh completes at the end of the line $2; $1 is the program.
zmodload zsh/zpty
"$1" completions zsh > ~/_chron-cli
rm -f ~/hits
zpty shell zsh -f -i
zpty -w shell "PROMPT= fpath=(~ \$fpath); autoload -Uz compinit; compinit -u -D
compadd() { typeset -a hits; [[ \${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]] || { builtin compadd -A hits \"\$@\"; print -rl -- \$hits >> ~/hits }; builtin compadd \"\$@\" }
comppostfuncs=(done-here); done-here() { print; print -r done'-here' }
bindkey '^I' complete-word; print read'y'-here"
zpty -r shell line '*ready-here*'
zpty -w -n shell "$2"$'\t'
zpty -r shell line '*done-here*'
zpty -d shell
cat ~/hits
