"""Content of the synthetic bank domain: life stages, goals and the products they call for.

Products, sentences, odds and ages are made for this project and describe no bank and nobody. The
format is explained in `common.synthetic_model`.
"""

from common.synthetic_model import Content

BANK = Content(
    domain="bank",
    kinds={
        "a": "Account",
        "c": "Card",
        "l": "Loan",
        "f": "Fund",
        "i": "Insurance",
        "s": "Savings",
        "v": "Service",
    },
    relations={
        "a": "account_for",
        "c": "card_for",
        "l": "finances",
        "f": "invests_for",
        "i": "protects",
        "s": "saves_for",
        "v": "serves",
    },
    group_relation="in_field",
    lead_relation="often_precedes",
    anchor_kind="",
    traits=("income", "risk", "digital", "family", "thrift"),
    ages=(41.0, 16.0, 16.0, 86.0),
    interactions=(3, 20),
    memory_years=6.0,
    table="""
[everyday] Daily banking
a0 Current account | Everyday account for salary and bills.
c0 Debit card | Card that pays straight from the current account.
v0 Online banking | Accounts and transfers in the browser.
v0 Mobile banking app | Accounts and payments on the phone.
s0 Instant access savings | Savings that can be taken out any day.
v0 Standing order | A fixed sum is paid each month.
v0 Direct debit for utilities | Power and water are collected from the account.
v0 Contactless phone payment | The phone pays at the till.
v0 Account alerts | A message for each booking.
i0 Personal liability insurance | Pays for damage done to others.
[student] Education and first steps
odds -0.2 age 18 2 traits family -.2 leads job 1.2 abroad .8
a0 Student account | Free account for pupils and students.
c0 Prepaid card for young people | Card that only spends what was loaded.
l0 Student loan | Credit for tuition and living, paid back after the degree.
v0 Tuition payment plan | University fees in instalments.
v1 Student discount club | Offers with a student account.
i1 Student health insurance | Health cover for people in education.
[abroad] Travel
odds -1.7 age 25 5 traits income .3 digital .3 leads travel .8
v0 Semester abroad package | Account, card and cover for a stay in another country.
a1 Multi-currency account | Balances in dollars, euros and pounds.
v1 International transfer | Money sent to another country.
[job] First job
odds .3 age 24 3 traits income .2 leads car .6 travel .4 nest .5 invest .5
a0 Salary account | Account with a bonus when wages come in.
c0 Classic credit card | First credit card with a small limit.
s1 Rainy day savings plan | A monthly sum for emergencies.
l1 Overdraft facility | The account may go below zero.
i1 Income protection insurance | Pays when illness or an accident stops work.
s2 Company pension scheme | Retirement saving through the employer.
i2 Occupational disability insurance | A pension for people who can no longer do their job.
[car] Mobility
odds -.5 age 30 11 traits income .3 family .2
l0 Car loan | Credit for a new or a used car.
i0 Car insurance | Liability and damage cover for the car.
l1 Car leasing | Monthly rate, return after three years.
i1 Roadside assistance | Help after a breakdown.
l2 Electric vehicle loan | Green credit for an electric car.
l2 Motorcycle loan | Credit for a motorbike.
v2 Fuel and charging card | One card for petrol and charging stations.
[travel] Travel
odds -.7 age 36 14 traits income .6 risk .2 digital .3
c0 Travel credit card | No fee abroad, points for flights.
i0 Travel insurance | Cover for trip cancellation and lost luggage.
i1 Travel health insurance | Pays doctors and hospitals abroad.
v1 Foreign cash order | Foreign notes before the holiday.
c2 Gold credit card | Higher limit, lounge access and cover.
s2 Holiday savings pot | A pot for the next journey.
[nest] Moving in together
odds -.3 age 29 5 traits family .4 leads wedding .8 home .6 child .5
a0 Joint account | Account of a couple for rent and food.
l0 Rental deposit guarantee | The bank vouches for the deposit of a flat.
i0 Household contents insurance | Furniture and things against fire, water and theft.
l1 Furniture instalment loan | Kitchen and furniture in instalments.
v1 Address change service | All contracts follow a move.
i1 Legal expenses insurance | Pays lawyers in disputes.
i2 Pet insurance | Pays the vet.
[wedding] Family
odds -1.1 age 31 4 traits family .7 leads child 1.1 home .5
l0 Wedding loan | Small credit for the wedding party.
s0 Wedding savings goal | Saving together for the big day.
i1 Life insurance for couples | Secures the partner.
v1 Joint tax advice | Advice for married couples.
[child] Family
odds -1.0 age 32 4 traits family .9 leads home .7 school 1.5
s0 Child savings plan | A monthly sum from birth to adulthood.
a0 Child account | First account in a child's name.
i0 Family health insurance | Health cover for parents and children.
v0 Parental leave budget plan | A plan for the months without salary after a birth.
i1 Term life insurance | Secures the family if a parent dies.
f1 Junior fund savings plan | Shares bought each month for a child.
i2 Child accident insurance | Pays after a child's accident.
l2 Family car loan | Credit for a larger car.
i1 Maternity hospital cover | A private room for birth and pregnancy care.
[school] Family
odds -2.4 age 42 5 traits family .5 leads college .8
c0 Pocket money card | A card for children with limits set by parents.
s0 Education savings plan | Saving for school and university.
v1 School trip payment plan | Class journeys in instalments.
i1 Orthodontic insurance | Pays for a child's braces.
i1 Children's sports insurance | Covers injuries in the sports club.
[college] Family
odds -2.8 age 50 5 traits income .4
l0 Parent education loan | Parents finance a child's degree.
v0 Standing order for a student child | Monthly support for studies.
l1 Rental guarantee for a student child | Parents vouch for the flat.
[home] Home ownership
odds -1.1 age 36 7 traits income .8 thrift .3 family .4 leads reno 1.3 solar .7
s0 Building savings contract | Saves for a home and earns a cheap loan.
v0 Mortgage advice | Talk about what home is affordable.
l0 Fixed-rate mortgage | Home loan with the same rate for ten years.
l1 Variable-rate mortgage | Home loan that follows the market rate.
i1 Buildings insurance | The house against fire, storm and water.
i1 Mortgage protection insurance | Pays the home loan after illness or death.
v2 Notary account | Holds the purchase price safely.
l3 Mortgage refinancing | A new home loan replaces the old one.
i2 Natural hazards insurance | The house against flood and landslide.
[reno] Home ownership
odds -2.4 age 46 9 traits income .4
l0 Renovation loan | Credit for kitchen, bath and roof.
l1 Energy efficiency loan | Promoted credit for insulation and windows.
l1 Age-friendly conversion loan | Stair lift and level shower for later years.
i2 Construction insurance | Covers damage while building.
[solar] Home ownership
odds -3.0 age 46 9 traits risk .3 income .3
l0 Solar panel loan | Credit for panels on the roof.
i1 Solar panel insurance | Panels against hail and failure.
l1 Heat pump loan | Credit for a modern heating.
[business] Self-employment
odds -2.0 age 38 9 traits risk .7 income .3 leads company 1.5 pension .5
a0 Business account | Account for freelancers and small firms.
l0 Start-up loan | Credit for a new firm.
c0 Business credit card | Card for expenses of the firm.
i0 Professional indemnity insurance | Pays for mistakes at work.
v1 Card payment terminal | The shop takes cards.
v1 Bookkeeping link | Bookings flow into the tax software.
i1 Private health insurance | Full health cover for the self-employed.
s2 Basic pension for self-employed | Retirement saving with a tax advantage.
[company] Self-employment
odds -3.6 age 45 8 traits income .6 risk .3
l0 Business overdraft | Bridges late customers.
l0 Equipment leasing | Machines in monthly rates.
v1 Payroll service | Pays the staff.
l1 Commercial property loan | Credit for shop or workshop.
i1 Cyber insurance for firms | Pays after an attack.
v2 Letter of credit | Safe payment in foreign trade.
[digital] Investing
odds -1.3 age 29 8 traits digital 1.0 risk .7 leads invest .7
v0 Crypto trading access | Buys and sells digital coins.
a0 Neo broker account | Trades shares on the phone.
v0 Robo-adviser | A program invests by rules.
f1 Technology share fund | Shares of software and chip makers.
f1 Clean energy fund | Shares of wind and solar firms.
[invest] Investing
odds -.9 age 37 11 traits risk .7 income .6 thrift .3 leads wealth .9 pension .5
a0 Securities account | Holds shares, bonds and funds.
f0 World index fund | Shares of the whole world at low cost.
f0 Fund savings plan | Shares bought each month.
f1 Balanced fund | Half shares, half bonds.
f1 European dividend fund | Shares that pay out.
f1 Sustainable share fund | Shares chosen for climate and fairness.
f2 Emerging markets fund | Shares of growing economies.
f2 Bond fund | Lends to states and firms.
f2 Real estate fund | Offices and flats in many cities.
f2 Gold fund | Follows the price of gold.
f3 Small company fund | Shares of small firms.
[wealth] Wealth
odds -3.0 age 52 10 traits income 1.3 thrift .3 leads estate .8
v0 Private banking adviser | A personal adviser for large fortunes.
c0 Platinum credit card | Concierge and high limit.
v1 Asset management mandate | The bank invests in one's name.
f1 Private equity fund | Stakes in unlisted firms.
v2 Safe deposit box | Steel box in the vault.
v2 Foundation advice | Help with setting up a charity.
l1 Securities-backed loan | Credit on shares.
[thrift] Savings
odds -.8 age 47 15 traits thrift 1.0 risk -.6
s0 Fixed-term deposit for one year | Fixed rate for twelve months.
s1 Fixed-term deposit for five years | Fixed rate for five years.
s0 Notice savings account | Three months of notice, a better rate.
s1 Savings bond | Rate that rises each year.
f2 Money market fund | Short-term paper, hardly any swing.
[debt] Money worries
odds -1.7 age 37 11 traits income -.8 thrift -.7
l0 Consumer instalment loan | Free-use credit in monthly rates.
l0 Revolving credit card | Card that is paid back slowly.
l1 Debt consolidation loan | One loan replaces many.
v1 Payment holiday | A month without a rate.
v2 Debt counselling | Help out of debt.
a2 Protected basic account | An account safe from seizure.
[health] Health and protection
odds -1.5 age 44 13 traits income .2 family .2 leads care .6
i0 Supplementary dental insurance | Pays for crowns and implants.
i0 Hospital supplementary insurance | Single room and senior doctor.
l1 Medical treatment loan | Credit for laser eye surgery, IVF or implants.
i1 Critical illness insurance | A sum after cancer, stroke or heart attack.
i1 Accident insurance | Pays after a sports or household accident.
i2 Daily sickness allowance | Income during a long illness.
[pension] Retirement
odds -.8 age 51 8 traits income .3 thrift .5 leads retiree .6
s0 Private pension plan | Monthly saving for a pension.
v0 Retirement advice | What is missing for old age.
i1 Deferred annuity | A lifelong pension from a chosen age.
f1 Target date fund | Fewer shares as retirement comes near.
s1 State-subsidised pension plan | Retirement saving with allowances.
f2 Income fund | Pays out each quarter.
[retiree] Retirement
odds .4 age 65 3 traits thrift .2 leads care .8 estate .8
a0 Pension account | Account for retired people.
v0 Pension payout plan | A monthly sum from savings.
i1 Immediate annuity | A lump sum becomes a lifelong pension.
v1 Branch service by telephone | Banking without the internet.
s1 Senior savings bond | Safe rate for retired people.
i2 Senior travel insurance | Journeys after seventy.
l2 Equity release mortgage | Money from the house while living in it.
[care] Retirement
odds -2.4 age 73 6 traits family .2
i0 Long-term care insurance | Pays for nursing at home or in a care home.
v0 Power of attorney | A trusted person may use the account.
v1 Home emergency call service | A button that calls help after a fall.
v1 Care cost planning | How nursing at home is paid for.
s2 Hearing aid and glasses savings pot | A pot for hearing aids and glasses.
[estate] Retirement
odds -2.6 age 71 7 traits income .4 family .4
v0 Will and inheritance advice | Who gets what.
i0 Funeral insurance | Pays for the burial.
v1 Gift to grandchildren plan | Passing money on in time.
v2 Executor service | The bank carries out the will.
s1 Grandchild savings plan | Grandparents save for a child.
""",
)
